"""Models as transformers loads them: loading, saving, and the attention that packed training and slot decoding share."""
