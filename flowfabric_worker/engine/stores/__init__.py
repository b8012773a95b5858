"""Stores, chosen by URL."""

from flowfabric_worker.engine.stores.base import Call, Reply, Store, StoreInfo, Subscription
from flowfabric_worker.engine.stores.urls import anchored_url, open_store

__all__ = ["Call", "Reply", "Store", "StoreInfo", "Subscription", "anchored_url", "open_store"]
