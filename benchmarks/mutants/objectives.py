"""Mutants of metrics and objectives."""

OBJECTIVES = r"""
gpr_rl/metrics.py < gpr_rl/test_metrics.py
    rank.to(gain.dtype) + 2.0 ==> rank.to(gain.dtype) + 3.0
    score.argsort(dim=1, descending=True ==> score.argsort(dim=1, descending=False
    better = gain[:, :, None] > gain ==> better = gain[:, :, None] >= gain
    exists[:, :, None] & exists[:, None, :] ==> exists[:, :, None]
    (difference + 1.0) / 2.0 ==> (difference + 1.0)
    masked_fill(~valid, -torch.inf) ==> masked_fill(~valid, 0.0)
    hit = ranked[:, :cutoff] ==> hit = ranked[:, : cutoff + 1]
    device=ranked.device) + 1 ==> device=ranked.device)
agents/candidates.py < agents/test_hepo.py agents/test_objective_parts.py
    (per_level, valid).sum() / valid.sum() ==> (per_level, valid).mean() / valid.sum()
    valid).sum() / valid.sum().clamp_min(1) ==> valid).sum() / valid.numel()
agents/objectives/terminal.py < agents/test_hepo.py agents/test_objective_parts.py
    .square().sum(-1, keepdim=True) / count) ==> .square().sum(-1, keepdim=True) / (count - 1))
    torch.where(differs, std + eps, 1.0) ==> torch.where(differs, std, 1.0)
    valid & (high > low) ==> valid & (high >= low)
    centred = reward - reward.sum(-1, keepdim=True) / count ==> centred = reward
    (terminal_reward.reshape(1, -1), eps, valid.reshape(1, -1)) ==> (terminal_reward, eps, valid)
agents/objectives/surrogate.py < agents/test_hepo.py agents/test_objective_parts.py
    log_ratio.clamp(max=math.log1p(clip)) ==> log_ratio.clamp(max=-math.log1p(-clip))
    log_ratio.clamp(min=math.log1p(-clip)) ==> log_ratio.clamp(min=-math.log1p(clip))
    advantage >= 0, ==> advantage <= 0,
    return -mean_over_candidates(gain ==> return mean_over_candidates(gain
    gain = gain * level_weight ==> gain = gain
    log_ratio = log_prob - behavior ==> log_ratio = log_prob + behavior
    advantage = advantage.mean(-1 ==> advantage = advantage.sum(-1
    -self.entropy_coefficient * entropy ==> self.entropy_coefficient * entropy
    (ratio - 1).abs() > self.clip ==> (ratio - 1) > self.clip
    mean_over_candidates(clipped, valid) / ratio.shape[-1] ==> mean_over_candidates(clipped, valid)
agents/critic.py < agents/test_hepo.py agents/test_objective_parts.py
    error.square() ==> error.abs()
    value_target.detach(), mask ==> value_target, mask
agents/objectives/hepo.py < agents/test_hepo.py agents/test_objective_parts.py
    reward[..., level] + discount * sums[-1] ==> reward[..., level] + sums[-1]
    _discounted_sums(reward, discount) ==> _discounted_sums(reward, 1.0)
    _discounted_sums(to_come, self.discount) ==> _discounted_sums(to_come, 1.0)
    last = reward[..., -1:] - value[..., -1:] ==> last = reward[..., -1:] - value[..., :1]
    discount * value[..., 1:] ==> discount * value[..., :-1]
    (delta, discount * gae_lambda) ==> (delta, gae_lambda)
    value.detach(), mask ==> value, mask
    torch.stack(sums[::-1], -1) ==> torch.stack(sums, -1)
    reversed(range(reward.shape[-1] - 1)) ==> range(reward.shape[-1] - 1)
    advantage[..., -1] = last ==> advantage[..., 0] = last
    last.unsqueeze(-1) + _discounted ==> last.unsqueeze(-1) - _discounted
    terminal_reward + shaping, ==> terminal_reward,
    delta = scale * popularity_deltas ==> delta = popularity_deltas
agents/objectives/process_rewards.py < agents/test_hepo.py agents/test_objective_identities.py
    legal_mask).clamp_min(0.0) ==> legal_mask).clamp_max(0.0)
    torch.where(legal, score, 0.0).sum(-1) ==> score.sum(-1)
    discount * potential - before ==> potential - discount * before
    -before[..., -1] ==> before[..., -1]
    (matches * past_valid[:, None, :, None]) ==> matches
    same[..., :-1]], -1) ==> same[..., 1:]], -1)
agents/objectives/ppo.py < agents/test_ppo.py
    out[key] * self.num_levels ==> out[key]
    torch.tensor([discount, gae_lambda] ==> torch.tensor([gae_lambda, discount]
    clip_epsilon=clip ==> clip_epsilon=2 * clip
agents/objectives/dpo.py < agents/test_grpo_dpo.py agents/test_objective_identities.py
    beta * (chosen - rejected) ==> beta * (rejected - chosen)
    rejected)).sum() / max(len(log_prob_chosen), 1) ==> rejected)).sum()
    beta * (rejected - chosen[:, None]) ==> beta * (chosen[:, None] - rejected)
    per_row.sum() / some.sum().clamp_min(1) ==> per_row.mean()
    best.gather(1, chosen) > worst ==> best.gather(1, chosen) >= worst
    (margin > 0) ==> (margin < 0)
agents/objectives/ecpo.py < agents/test_ecpo_gbpo.py
    math.log1p(clip + delta) ==> math.log1p(clip)
    torch.where(advantage < 0, excess ==> torch.where(advantage > 0, excess
agents/objectives/gbpo.py < agents/test_ecpo_gbpo.py
    current, log1mexp(current) ==> log1mexp(current), current
    torch.maximum(behavior ==> torch.minimum(behavior
    current = log_prob.detach() ==> current = log_prob
agents/objectives/raft.py < agents/test_objective_identities.py
    (score > worst) ==> (score >= worst)
    .sum(-1) / count.clamp_min(1) ==> .sum(-1)
    (count > 0).sum().clamp_min(1) ==> count.numel()
agents/objectives/reinforce.py < agents/test_objective_identities.py agents/test_objective_parts.py
    (reward, mask) * count / (count - 1).clamp_min(1) ==> (reward, mask)
    return -mean_over_candidates( ==> return mean_over_candidates(
    .clamp_max(_MAX_LOG_RATIO) ==> .clamp_max(1.0)
agents/objectives/rspo.py < agents/test_rspo.py
    log_prob[:, None, :] - log_prob[:, :, None] ==> log_prob[:, :, None] - log_prob[:, None, :]
    softplus(log_sum) / math.log(2.0) ==> softplus(log_sum)
    log_weight + beta * difference ==> beta * difference
    (1 + worse.sum(-1)) < delta ==> (1 + worse.sum(-1)) > delta
    1.0 / (2.0 + distance).log2() ==> 1.0 / (3.0 + distance).log2()
    anchored[:, :, None], pull ==> anchored[:, None, :], pull
agents/objectives/unified.py < agents/test_objective_identities.py agents/test_objective_parts.py
    weight * largest * (1.0 - apart) ==> weight * largest * (1.0 + apart)
    (apart * above ==> ((1.0 - apart) * above
    mask & (known > mean) ==> mask & (known < mean)
    preferred * losses, mask ==> supervised * losses, mask
    (count - 1).clamp_min(1), mask) ==> count.clamp_min(1), mask)
agents/objectives/loss_shell.py < agents/test_grpo_dpo.py
    (data["codes"]), data["valid"]).sum(-1) ==> (data["codes"]), data["valid"]).mean(-1)
    keep_valid(chosen, data["valid"]).sum(-1) ==> keep_valid(chosen, data["valid"]).mean(-1)
"""
