"""The command line and what it needs: settings, a run's folder, the training loop, pictures, reports."""
