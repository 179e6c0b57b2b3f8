"""MobileVLM: vision-language models of Meituan (arXiv 2312.16886, 2402.03766)."""
