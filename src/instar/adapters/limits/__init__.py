"""What the gradient of LoRA in attention costs: exactly, by polynomials, and which of the two a model allows.

Hu, Su, Kuo, Song, Liu, "Computational Limits of Low-Rank Adaptation (LoRA) for Transformer-Based Models", ICLR 2025
(arXiv 2406.03136).
"""
