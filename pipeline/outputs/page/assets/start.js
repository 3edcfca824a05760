"use strict";
camlakeDetail.start();
camlakeGallery.start();
