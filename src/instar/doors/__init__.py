"""Doors: one ecosystem each, whose package is imported when the door is opened, never before.

Whatever answers items for the gate is a `version.Version`; `opening` finds the right one for a name.

| file | what it is |
|---|---|
| `version` `settings` `opening` | the interface, how settings are read (one rule for all), from a name to predictions |
| `functions` | a Python function |
| `openai` | an endpoint, by `asking` (retries) → `client` (keys) → `wire` (HTTP); `embedding`, `wording` (text → answer) |
| `hf` `decoder` | a stored model of `transformers`, or of ours, each run in a fresh `process` |
| `receipts` | a stored model before or after one of its updates |
| `local` | what stored models share: settings, answers, the `Subject` that answers |
| `speaking` `hf_causal` `hf_encoder` | subjects: what continues text, and what makes vectors, classes and numbers of it |
| `nearest` | search by vectors, for endpoints and models |
| `hf_causal_lm` `hf_causal_lm_config` `hf_state_cache` | our decoder in `transformers`, with a cache of states |
| `hf_attention` | attention functions for models of `transformers` |
| `replacing` `swapped` `swap_report` | attention of a trained model replaced by a mixer that keeps its projections |
| `lm_eval` `lm_eval_samples` | reads what the lm-evaluation-harness wrote; nothing is run |
"""
