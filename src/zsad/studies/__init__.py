"""Studies of methods: benchmark, ablations, explanations, speed, and their reports."""
