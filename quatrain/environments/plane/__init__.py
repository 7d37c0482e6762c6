"""The laboratory *plane*: reaching, navigation and pushing in two dimensions, a batched tensor program with scripted experts."""
