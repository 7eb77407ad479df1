"""The figures of a report. `style` holds colours, markers, order and captions; each other module one kind of figure."""
