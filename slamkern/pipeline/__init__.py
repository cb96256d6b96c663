"""All stages in one folder, resumable: probe, select, align, evaluate, report."""
