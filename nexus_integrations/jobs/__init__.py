"""Jobs over a whole corpus, which take hours and can be interrupted."""

from nexus_integrations.jobs.embed import JobConfig, JobResult, embed_corpus

__all__ = ["JobConfig", "JobResult", "embed_corpus"]
