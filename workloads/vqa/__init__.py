"""Visual question answering: data sets in their own file formats, and their official scores."""
