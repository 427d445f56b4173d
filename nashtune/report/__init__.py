"""The self-contained HTML report and the model card."""
