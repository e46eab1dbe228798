"""Self-contained HTML pages about runs, data and evaluations."""
