"""More images than one process scores: one predictor for every data engine, and Ray."""
