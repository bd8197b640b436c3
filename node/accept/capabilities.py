"""What the Studies resource can do, for OPTIONS (PS3.18 §8.9): a WADL description that never changes."""

WADL = b"""<?xml version="1.0" encoding="UTF-8"?>
<application xmlns="http://wadl.dev.java.net/2009/02">
  <resources base="dicom-web">
    <resource path="studies">
      <method name="POST" id="StoreInstances">
        <request>
          <representation mediaType="multipart/related; type=&quot;application/dicom&quot;"/>
        </request>
        <response status="200 202 409">
          <representation mediaType="application/dicom+json"/>
          <representation mediaType="application/dicom+xml"/>
        </response>
        <response status="400 403 406 408 413 415 503"/>
      </method>
      <resource path="{StudyInstanceUID}">
        <method name="POST" href="#StoreInstances"/>
      </resource>
    </resource>
  </resources>
</application>
"""
