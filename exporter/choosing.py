"""Which domains and devices the settings choose."""

from __future__ import annotations

from collections.abc import Callable

from collectors.domain_xml import DomainXMLError, parse
from collectors.filters import Choice, Filters

from .config import FilterSettings, Settings
from .expressions import Expression


def filters_of(settings: FilterSettings) -> Filters:
    """The choices of the settings, their regular expressions compiled."""
    def choice(include: str | None, exclude: str | None) -> Choice:
        return Choice(Expression(include) if include else None, Expression(exclude) if exclude else None)

    return Filters(choice(settings.domain_include, settings.domain_exclude),
                   choice(settings.uuid_include, settings.uuid_exclude),
                   choice(settings.metadata_include, settings.metadata_exclude),
                   choice(settings.device_include, settings.device_exclude))


def choice_by_xml(settings: Settings, filters: Filters) -> Callable[[str], bool]:
    """Whether the metadata in a domain's XML are chosen; where they cannot be read, only by exclusion."""

    def chosen(xml: str) -> bool:
        try:
            return filters.owned(parse(xml, settings.metadata.mapped))
        except DomainXMLError:
            return filters.owned(None)

    return chosen if filters.metadata else lambda _xml: True
