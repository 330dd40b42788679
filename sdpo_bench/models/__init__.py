"""Base models: known names, pipeline folders, the hub, and the policy (a denoiser with one LoRA adapter).

May import: the top-level modules and the packages up to `prompts`.
"""
