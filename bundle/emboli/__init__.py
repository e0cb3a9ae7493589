"""Inserts emboli into filled vessels, finds invented ones, and measures what observers see."""
