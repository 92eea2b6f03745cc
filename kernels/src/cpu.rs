use std::sync::OnceLock;

/// Instruction level that the ops run at, from the slowest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuLevel {
    /// Plain loops as the papers write them: the judge of the others.
    Scalar,
    /// x86-64 with AVX2 and FMA: 8 floats a vector.
    Avx2,
    /// x86-64 with AVX-512 F, VL, BW and DQ: 16 floats a vector.
    Avx512,
}

/// `SSM_CPU` could not be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// The word is no level.
    #[error("SSM_CPU: expected scalar, avx2 or avx512, got {0:?}")]
    Unknown(String),
    /// The machine lacks the level.
    #[error("SSM_CPU: {asked} was asked for, but this machine has {best} at most")]
    Missing {
        /// The level in the variable.
        asked: CpuLevel,
        /// The best level of this machine.
        best: CpuLevel,
    },
}

impl CpuLevel {
    /// Every level, slowest first.
    pub const ALL: [CpuLevel; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The best level of this machine, detected once.
    pub fn best() -> Self {
        static BEST: OnceLock<CpuLevel> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::is_x86_feature_detected as has;
                if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") && has!("fma") {
                    return Self::Avx512;
                }
                if has!("avx2") && has!("fma") {
                    return Self::Avx2;
                }
            }
            Self::Scalar
        })
    }

    /// This level, or the best of this machine where that is lower.
    #[must_use]
    pub fn here(self) -> Self {
        self.min(Self::best())
    }

    /// The levels of this machine, slowest first.
    pub fn present() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|l| *l <= Self::best())
    }

    /// The best level, or the lower one that the environment variable `SSM_CPU` names.
    pub fn from_env() -> Result<Self, LevelError> {
        match std::env::var("SSM_CPU") {
            Ok(word) if !word.is_empty() => {
                let asked: Self = word.parse()?;
                let best = Self::best();
                if asked > best { Err(LevelError::Missing { asked, best }) } else { Ok(asked) }
            }
            _ => Ok(Self::best()),
        }
    }

    /// Output columns that one packed panel of [`crate::linear`] holds at this level.
    pub(crate) const fn panel(self) -> usize {
        match self {
            Self::Scalar => 8,
            Self::Avx2 => 16,
            Self::Avx512 => 32,
        }
    }
}

impl std::str::FromStr for CpuLevel {
    type Err = LevelError;
    fn from_str(word: &str) -> Result<Self, LevelError> {
        match word {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            _ => Err(LevelError::Unknown(word.to_owned())),
        }
    }
}

impl std::fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}
