"""Options for reading and cleaning the documents of a source."""

import dataclasses
import functools

from bert_jax import config


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading and cleaning documents, lines and sentences; see the fields of `config.Data`."""

    text_field: str = 'text'
    group_field: str = ''
    split_sentences: bool = True
    deduplicate_lines: bool = False
    documents: str = 'blank_lines'
    join_lines: bool = False
    template: str = ''
    columns: tuple[str, ...] = ()
    delimiter: str = ''
    quotes: bool = True
    encoding: str = 'utf-8'
    languages: tuple[str, ...] = ()
    quality_rules: tuple[str, ...] = ()
    boilerplate_documents: int = 0
    redact: tuple[str, ...] = ()
    near_duplicates: float = 0.0
    near_duplicate_unit: str = 'document'

    @property
    def cleans(self) -> bool:
        """Whether documents are cleaned after they are read; see `text/cleaning`."""
        return bool(self.languages or self.quality_rules or self.boilerplate_documents or self.redact)

    @classmethod
    def from_config(cls, data: config.Data) -> 'ReadOptions':
        """Takes the options from the fields of `config.Data` with the same names."""
        return cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})

    @functools.cached_property
    def template_parts(self) -> list[tuple[str, str]]:
        """The template as (text, name of the field after it or ''); [] without a template."""
        return config.template_parts(self.template)

    @functools.cached_property
    def text_fields(self) -> tuple[str, ...]:
        """The fields of a record that its text is made of."""
        named = (name for _, name in self.template_parts if name)
        return tuple(dict.fromkeys(named)) if self.template else (self.text_field,)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record that are read: those of the text, then that of the group if there is one."""
        return (*self.text_fields, self.group_field) if self.group_field else self.text_fields

    def describe_choice(self, field: str, names: list[str]) -> str:
        """Returns how to choose fields or columns that exist instead of `field`."""
        listed = ', '.join(names)
        if field == self.group_field and field not in self.text_fields:
            return f'--config.data.group_field=NAME, one of: {listed}'
        if self.template:
            return f'--config.data.template with the names in braces among: {listed}'
        return f'--config.data.text_field=NAME, one of: {listed}'
