//! `ssmclassify`: see [`imp`].
