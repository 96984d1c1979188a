"""Who may be seen when: segment files, folds, runs, the guard against leaks."""
