//! TransGQLA: turns a GQA checkpoint into a GQLA one, layer by layer.
