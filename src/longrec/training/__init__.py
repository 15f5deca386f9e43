"""Makes and weighs models."""
