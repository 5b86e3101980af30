"""The served model: requests and their limits, prediction, answers, and what stands between them and the network."""
