"""Corpora on disk: saved whole or not at all, shared where they are equal, opened without being read; knows no model run.

    <root>/.lock                   held for milliseconds by who publishes or opens
           .packs/<id>/            documents that were read together: keys and values, texts, spans; never changed
           .packs/.stage-<id>/     a pack that is being written
           <name>/manifest.json    a corpus: its documents in order, and where each lies
           <name>/unfinished-<id>  the packs of an ingest that is under way, or was broken off

What a model made of a document is a segment of a pack. Its key is a hash of the model's identity, the way of reading and the
text, so a document that was read for one corpus, or by an ingest that was broken off, is found again for another and lies on
the disk once. An edit writes a pack of what is new and a manifest, and nothing else.

The trade-off: a file for each document would open slowly and lie scattered, one file for each corpus would be rewritten by
every edit and could share nothing. With packs, a corpus that was read in one go and not edited since lies in one to a few
tensors a layer, mapped as they are; after edits, and where documents are shared, it lies in more of them, and then a scan
copies a layer's keys together while it lasts. Publishing rewrites what lies too scattered, and what fills less than half of
a pack that nobody else needs.

The moment a new manifest takes the old one's name is the moment a corpus changes; what dies before that has changed nothing.
Packs that no manifest and no unfinished ingest names are deleted by the next who publishes or removes. Nothing is unpickled.
"""

from reattention_core.store.shelf import Store as Store
