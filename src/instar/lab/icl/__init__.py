"""Which algorithm a model has learnt in context: tasks, measures, probes, constructions and theories around `InContextLearner`.

Akyürek et al. 2023 (arXiv 2211.15661), Zhang, Frei, Bartlett 2023 (2306.09927), Li et al. 2023 (2304.13276), Bhattamishra et al.
2024 (2310.03016).
"""
