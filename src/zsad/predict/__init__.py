"""From images to predictions: read, score, judge, and what a prediction can draw."""
