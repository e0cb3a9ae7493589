"""Inserts emboli into filled vessels, finds invented ones, and measures what model observers see."""
