"""Imp: vision-language models of MILVLG (arXiv 2405.12107)."""
