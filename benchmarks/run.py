"""Compare methods and write a report.

Examples:
  python -m benchmarks.run                              HEPO and its rivals; about ten minutes
  python -m benchmarks.run --preset smoke               the same in under a minute, numbers rough
  python -m benchmarks.run --methods hepo ppo --seeds 5 --workers 4 --out runs/mine
  python -m benchmarks.run --reward ecpm --reward my_rewards:diversity=0.1
  python -m benchmarks.run --out runs/mine --resume ... go on after Ctrl-C, with the same flags
  python -m benchmarks.run --out runs/mine --resume --seeds 10 --ablate kl_0   add to what is there
  python -m benchmarks.run --out runs/mine --resume --without ppo   without a row that fails
"""
