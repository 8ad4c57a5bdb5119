"""The study "Does Prompt Loss Matter?" (Huerta-Enochian and Ko, arXiv 2401.13586)."""
