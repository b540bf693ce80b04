"""What the supervisor decides, as pure functions: `step(model, event, now) -> (model, effects)`."""
