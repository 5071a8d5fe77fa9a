"""The job: manifest -> records -> engine -> results, committed exactly once. No torch."""
