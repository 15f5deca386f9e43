"""What one model leaves for another, by key and time; nothing at or after the asked moment comes back."""
