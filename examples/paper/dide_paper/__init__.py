"""DiDE as the paper trains it: real ViLT checkpoints, real data sets, the official arithmetic."""
