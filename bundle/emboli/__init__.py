"""Inserts emboli into filled vessels, finds invented ones, and reads what observers see."""
