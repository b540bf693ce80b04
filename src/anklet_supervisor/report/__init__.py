"""What the supervisor tells: status, metrics, history."""
