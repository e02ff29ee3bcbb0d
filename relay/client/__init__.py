"""The SDK: end-to-end encryption, a local store, and sends and receives that survive restarts. See docs/PROTOCOL.md."""

from __future__ import annotations

from relay.client.card import Card
from relay.client.channelcard import ChannelCard
from relay.client.channels import ChannelPost, Channels, ChannelPosts
from relay.client.channelstore import Known as KnownChannel
from relay.client.client import Client, open_client
from relay.client.errors import (
    BadCard, ClientClosed, Fenced, NotOwner, NotProven, NotReceiving, NotServed, Revoked, SendRefused, TooLarge,
    UnknownChannel, UnknownGroup,
)  # fmt: skip
from relay.client.identity import Registrar, add_device, ask_to_move, new_user, take_records, update_root
from relay.client.lifecycle import (
    recover_user, revoke_devices, rotate_device_keys, rotate_user_key, share_user_key,
)  # fmt: skip
from relay.client.messages import Messages
from relay.client.shapes import MAX_CONTENT, Failure, Group, Message, Sent, Stats

__all__ = [
    "BadCard", "Card", "ChannelCard", "ChannelPost", "ChannelPosts", "Channels", "Client", "ClientClosed", "Failure",
    "Fenced", "Group", "KnownChannel", "MAX_CONTENT", "Message", "Messages", "NotOwner", "NotProven", "NotReceiving",
    "NotServed", "Registrar", "Revoked", "SendRefused", "Sent", "Stats", "TooLarge", "UnknownChannel", "UnknownGroup",
    "add_device", "ask_to_move", "new_user", "open_client", "recover_user", "revoke_devices", "rotate_device_keys",
    "rotate_user_key", "share_user_key", "take_records", "update_root",
]
