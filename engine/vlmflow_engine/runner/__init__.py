"""Carries a step's plan out on a device."""
