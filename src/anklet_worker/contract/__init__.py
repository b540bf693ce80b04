"""All that a plugin may import: jobs, guests, errors, findings, rules, and the halves of a plugin."""
