"""The fold: admission, index, cursors, rosters, outboxes. Pure."""

from relay.core.mailroom.fold import Mailroom as Mailroom
