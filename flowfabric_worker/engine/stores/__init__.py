"""Stores, chosen by URL."""

from flowfabric_worker.engine.stores.base import Call, Reply, Store, StoreInfo, Subscription
from flowfabric_worker.engine.stores.urls import open_store

__all__ = ["Call", "Reply", "Store", "StoreInfo", "Subscription", "open_store"]
