from maenas.extras import require as require
