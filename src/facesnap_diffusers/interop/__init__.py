"""Other people's identity adapters to ours, and ours to a stock IP-Adapter."""

from .export import export_ip_adapter, ip_adapter_image_embeds


__all__ = ["export_ip_adapter", "ip_adapter_image_embeds"]
