"""Operations that depend only on torch."""
