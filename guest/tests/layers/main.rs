//! `mitos-layers` as the engine runs it: real tars, real folders, real users.

mod against_gnu_tar;
mod changes;
mod confined;
mod copy;
mod hostile;
mod image;
mod image_vm;
mod merge;
mod random_entries;
mod tar;
mod tool;
mod unpack;
