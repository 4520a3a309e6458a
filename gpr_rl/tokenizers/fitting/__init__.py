"""How codebooks are fitted: residual and balanced k-means, autoencoder, contrastive adapter.

Imports torch, FAISS and scikit-learn; no tokenizer.
Start with `search.py`.
"""
