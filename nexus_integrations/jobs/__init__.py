"""Jobs over a whole corpus, which take hours and can be interrupted."""

from nexus_integrations.jobs.embed import JobConfig, JobReport, embed_corpus

__all__ = ["JobConfig", "JobReport", "embed_corpus"]
