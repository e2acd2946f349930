//! tabletserver
