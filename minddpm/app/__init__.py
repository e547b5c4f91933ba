"""The command line and its parts: settings, a run's folder, the training loop, pictures, reports."""
