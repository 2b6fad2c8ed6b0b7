"""How tokens come to be: sessions and caches, draft trees, acceptance rules, schedules, workers."""
