"""What the supervisor reports: status, metrics, history."""
